"""Right tokens, seconds and memory at the published size on a GPU: `python -m bench.gpu`.

Random weights are made on the device and no file is read but DiMOO-nano's: time does not depend on the weights. Rows
come in the order of their worth, each a JSON line as soon as it is known, and what no longer fits into the budget is
left out. The released code runs beside where a checkout of it is given, else the project's own baseline does.
"""
