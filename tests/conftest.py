"""Small tensors on many threads are slower than on one, above all where several processes share the cores."""

import torch

torch.set_num_threads(1)
