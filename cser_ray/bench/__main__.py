"""`python -m cser_ray.bench`: the benchmarks alone, in a Python that has torch and click but not Ray."""

from cser_ray.commands.bench import bench

bench(prog_name="python -m cser_ray.bench")
