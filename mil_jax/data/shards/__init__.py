"""Shards: TFRecord files of padded bags with an index beside them."""
