"""What `cser-ray doctor` asks of somebody else's training run: a probe inside its processes, and what is made of its answers.

The probe (`probe/`, `imports`, `waiting`, `ddp`, `watch`, `ending`, `sent`, `link`) imports nothing that the program has
not imported itself; `child`, `findings` and `text` are the command's side; `record` is what goes from one to the other.
"""
