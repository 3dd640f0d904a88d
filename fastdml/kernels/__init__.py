"""Triton kernels: similarity tiles that live in registers and nowhere else.

Nothing here is imported by `import fastdml`; the triton executor imports it on first use.

    tile.py         what a tile loss is: declared row statistics and four small Triton functions
    list_loss.py    what a loss over lists of thresholds is, lists.py where the kernels differ for one
    reductions.py   row statistics: how a tile is folded into them and partial ones are merged
    similarity.py   a tile of similarities, its schedule over columns, centres of one class
    forward.py      kernel 1: streams columns past a block of rows and folds; merges and finishes
    backward.py     kernel 2: recomputes the tile, turns it into pair weights, multiplies
    configs.py      tile sizes by architecture, type and dimension
    launch.py       the host side
    tiles/          the losses, one file each
"""
