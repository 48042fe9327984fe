"""What `cser-ray doctor` asks of somebody else's training run: a probe inside its processes, and what is made of its answers.

The probe imports nothing that the program has not imported itself: `probe/` and `imports` put it there, `watch` marks the
steps, `facts` and `steps` say what is trained and which steps count, `waiting` and `ddp` what they wait, `noise` and
`gradients` sample norms, `sent`, `ending` and `link` are of the last step. `child`, `findings`, `noise_scale` and `text` are
the command's side; `record` is what goes from one to the other.
"""
