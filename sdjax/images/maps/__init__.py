"""Control maps without weights: what control networks look at, by the conventions that they were trained with.

A ControlNet or a T2I-Adapter is told a picture's edges, depth, pose ... by another picture, its *map*. How that one has
to look (white lines on black, near = white, which colours, how wide a line) is nobody's free choice: it is how the maps
looked in training, and a net answers to no other. Everything here computes; what takes a network (HED, MLSD, a pose
detector) is not here, but its results are drawn, coloured and scaled.

    maps.make("canny", "photo.png")                          a picture by the map's name
    maps.openpose.openpose("pose.json", style="original")    the function itself

Read `pictures` (in and out; OpenCV; the size that edges are looked for at), `edges` and `lines`, `tones` and `detail`
(a picture with less in it), `depth` and `normals`, `segmentation`, `inpaint`, then `keypoints` (JSON) and `openpose`
(its drawing), and `table` (all names). Maps are RGB pictures of 8 bits, but for the one of `inpaint`.

Sources, by the signs that the files use: CN lllyasviel/ControlNet (the nets' training), X huggingface/controlnet_aux
0.0.10, W Mikubill/sd-webui-controlnet (A1111's extension), T TencentARC/T2I-Adapter, D diffusers 0.42.1.
"""

from sdjax.images.maps.table import MAPS, check, make

__all__ = ["MAPS", "check", "make"]
