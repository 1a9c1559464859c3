"""Plan + Program -> Program: the passes of a plan, run and checked."""
