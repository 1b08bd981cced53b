"""Data: from a folder of pictures with captions to the batch of any step.

    found = sources.find("pictures")                    names, captions, how to read the bytes
    dataset = scan.scan(found)                          every picture looked at; what is not good is a reject
    batches = Batches(dataset, Tokens(tokenizers), buckets.sdxl(), size=4, seed=0, form=Form.of(architecture))
    batches.batch(step)                                 a function of the step: nothing to save, nothing to restore

Read `record`, `sources` (`folder`, `shards`, `parquet`), `scan`; then `buckets`, `crops`, `captions`, `order`, which
are mathematics; then `pictures`, `texts` and `batches`, which put them together. `dreambooth` mixes two data sets,
`moments` and `states` keep in a `store` what frozen networks (`encoders`) make of pictures and captions, `ahead` makes
batches before they are needed, `sheets` shows them, `progress` tells how far it is.
"""
