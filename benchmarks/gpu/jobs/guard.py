"""Self-test of conv3d on large inputs, in pieces and against float64: the product's guard, with its figures."""

import sys
import time

import torch
from job import begin

from kdseg.networks.models.guard import KERNELS, LAYOUTS, check_convolutions, deviation, fitting_extent


def main() -> None:
    job = begin("guard", __doc__)
    device, wrong = torch.device(job.device), []
    for dtype in (torch.bfloat16, torch.float32):
        name = str(dtype).removeprefix("torch.")
        extent = (20, 24, 24) if job.rehearse else fitting_extent(torch.cuda.mem_get_info(device)[0], dtype)
        for layout, format_ in LAYOUTS.items():
            for kernel in KERNELS:
                key = f"{name}, {layout}, {'x'.join(map(str, kernel))}"
                if key in job.rows:
                    continue
                if job.out_of_time(1):
                    return
                found = deviation(device, dtype, extent, kernel, format_)
                job.rows.add(key, extent=extent, pieces=found.pieces, exact=found.exact, wrong=found.wrong)
                if found.wrong:
                    wrong.append(key)
    if device.type == "cuda" and "product" not in job.rows:
        begun = time.monotonic()
        check_convolutions(device, torch.bfloat16)
        job.rows.add("product", seconds=round(time.monotonic() - begun, 3))
    if wrong:
        sys.exit(f"conv3d is wrong here: {'; '.join(wrong)}")


if __name__ == "__main__":
    main()
