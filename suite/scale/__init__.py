"""The paper's own size, behind three seams: a data source, a placement of parameters, a launcher."""
