"""An out-of-core dataframe feature store."""
