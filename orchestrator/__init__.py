"""Many cells -> a cluster: plan, Ray Tune driver, MLflow writer, command line.

Every import of ray, mlflow or workers is inside the function that needs it, so that planning and
status are instant on a machine that has none of them loaded.
"""
