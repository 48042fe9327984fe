"""The folder that `cser-ray doctor` puts on its command's PYTHONPATH; holds sitecustomize.py and nothing else to import."""
