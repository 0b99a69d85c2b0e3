"""Folders of latents, written as `datasets` writes them, from arrays that a test knows."""

import datasets
import numpy as np

SHAPE, CAPTION = (3, 4, 4), (5, 6)


def arrays(n=24, classes=0, seed=0, shape=SHAPE, caption=CAPTION):
    """Columns of n rows: latents of another mean and size in every channel, and captions, or labels in turn."""
    draw = np.random.default_rng(seed)
    scale = np.arange(1, shape[0] + 1)[:, None, None]
    columns = {"latent": (draw.normal(size=(n, *shape)) * scale + scale).astype(np.float16)}
    columns |= {"label": np.arange(n) % classes} if classes else {"caption": draw.normal(size=(n, *caption)).astype(np.float16)}
    return columns


def kinds(columns):
    """The features of such columns, by `datasets`."""
    found = {}
    for name, values in columns.items():
        array = {3: datasets.Array2D, 4: datasets.Array3D}.get(values.ndim)
        found[name] = array(values.shape[1:], str(values.dtype)) if array else datasets.Value("int64")
    return datasets.Features(found)


def write(folder, columns, parts=2, kind="arrow"):
    """The columns in so many shards; returns the source that names them."""
    from datasets.arrow_writer import ArrowWriter

    folder.mkdir(parents=True, exist_ok=True)
    edges = np.linspace(0, len(columns["latent"]), parts + 1).astype(int)
    for i, (start, end) in enumerate(zip(edges, edges[1:])):
        part = {name: values[start:end] for name, values in columns.items()}
        path = folder / f"part-{i}.arrow"
        with ArrowWriter(path=str(path), features=kinds(columns)) as writer:
            middle = (end - start) // 2
            for rows in (slice(0, middle), slice(middle, None)):  # two record batches
                writer.write_batch({name: values[rows] for name, values in part.items()})
            writer.finalize()
        if kind == "parquet":
            datasets.Dataset.from_file(str(path)).to_parquet(str(path.with_suffix(".parquet")))
            path.unlink()
    return f"latents:{folder}"
