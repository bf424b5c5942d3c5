"""Several GPUs or machines share the pictures, each done once.

    torchrun --nproc_per_node 4 examples/predict_torchrun.py runs/mine pictures labels

Under SLURM `srun python` takes the place of `torchrun`. The files are those of one process.
"""

import sys
from pathlib import Path

from cssformer.inference import predict_files
from cssformer.utils.processes import rank

if __name__ == "__main__":
    model, pictures, output = sys.argv[1:]
    done = predict_files(model, [Path(pictures)], Path(output))
    if rank() == 0:  # who knows of all
        print(f"{done['pictures']} pictures, {len(done['failed'])} could not be read")
