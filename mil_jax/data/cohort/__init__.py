"""Who is in: ids, the label table, covariates, joined with the features into bags."""
