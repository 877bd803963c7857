"""The embedded tasks and models: tiny, shipped with the program, made by `make.py`."""
