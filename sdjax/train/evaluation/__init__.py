"""Evaluation: how good pictures are, by numbers that others report too, and whether a difference is more than chance.

Read `resizing` (a number depends on it), `features` (what a picture is to a network), `statistics` (their mean and
covariance, and the files for them); then the distances between two sets of pictures: `frechet` (FID and its like),
`kernel` (KID, for small sets), `neighbours` (precision and recall); `scores`, of a picture to its text; and `paired`,
tests for two models that were asked the same. Nothing here needs a network from elsewhere: a CLIP in hand will do.
"""
