"""Cross-lingual transfer (Hsu et al. 2019, arXiv:1909.09587): which pre-training, fine-tuned on what, reads what.

A YAML file declares the table: rows (a model, what it is fine-tuned on) and tests. Each row and seed is a cell:
trained once, tested on everything. `config.py` says what may be declared, `cells.py` how a cell is made.
"""
