"""Hands a study on to trackers: Optuna, MLflow, Weights & Biases, TensorBoard. Off unless asked for.

What is pushed comes from our own store. A run goes over once, when it has ended, under a key that follows from the study
and the run: pushing again adds what is new.
"""
