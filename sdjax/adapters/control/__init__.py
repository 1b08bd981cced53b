"""Networks that look at a picture beside the U-Net: ControlNets, T2I-Adapters, LLLites, and the files they come in.

Read `control_adapter` (what was loaded), `kind` (what a file is, told from its names), `locate` (where it is), then a
file for each kind: `controlnet` with `facts` (the config that a file alone does not say) and `weights` (what needs the
U-Net's own), `t2i_adapter`, `lllite`; and `load`, which is what users call.
"""

from sdjax.adapters.control.control_adapter import ControlAdapter as ControlAdapter
from sdjax.adapters.control.load import load_controlnet as load_controlnet
