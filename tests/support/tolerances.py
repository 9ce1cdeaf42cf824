"""The table of tolerances: how far two results may differ; every test that needs a tolerance takes it from here.

All are absolute, for maps on [0,1] or divided by the largest magnitude of the expected map.
"""

import torch

# Against the reference in float64 on the very same (already rounded) inputs. A float64 map comes back as float32.
SAME_INPUTS = {torch.float64: 1e-6, torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}

# Against the map of the float32 inputs from which float16 or bfloat16 ones were rounded.
ROUNDED_INPUTS = {torch.float16: 2e-2, torch.bfloat16: 2e-2}

# Against a recipe of examples/, or a whole network, written out naively: two float32 paths, twice the error of one.
RECIPE_PARITY = 2e-5

# Against another library's map of the same network: two float32 paths, each with its own order of sums.
PEER = 3e-5

# Against pytorch-grad-cam's map of the same call, scaled the same way; COMPAT_ABLATION where the scores of ablated
# channels make it, COMPAT_SCORE where the softmax of many scores does.
COMPAT = 3e-6
COMPAT_ABLATION = 1e-5
COMPAT_SCORE = 1e-4
# Logits of a compiled network against the eager one's: a compiler folds and reorders float32 sums.
COMPILED_LOGITS = 1e-4
