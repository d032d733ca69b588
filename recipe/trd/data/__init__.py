"""Data preparation: public sets and your own data to verl's parquet files, with a card that accounts for every row.

`python -m recipe.trd.data prepare NAME`; the sets are in `sources.py`, the order of the steps in `prepare.py`, the
columns of the files in `prepared_file.py`. Nothing here imports verl.
"""
