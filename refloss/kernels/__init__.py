"""The only place that compiles loops over arrays: a folder a family.

loop.py says what is computed (a description of scalars, which a loss brings) and has the loops on the CPU, run.py leads
from arrays to loops and back and picks the device, gpu.py has the loops on a GPU.
"""
