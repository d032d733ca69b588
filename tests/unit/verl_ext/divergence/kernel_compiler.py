"""Compile every kernel for GPUs that need not be there: `python kernel_compiler.py`, without Triton's interpreter.

Prints one line of JSON: kernel, compute capability, registers spilled to memory.
"""

import json
import re
import subprocess
import tempfile

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from verl_ext.divergence import kernels
from verl_ext.divergence.pointwise import DISTRIBUTION_DIVERGENCES
from verl_ext.divergence.softmax import PIECE

POINTERS = {"argmax_out": "*i64", "out": "*bf16", "values": "*bf16"}
NUMBERS = ("stride", "student_stride", "teacher_stride", "out_stride", "num_tokens", "num_pieces", "num_values")
FLOATS = ("beta", "entry_clip", "factor")


def compiled_kernel(kernel, capability, **constants):
    """Machine code of a kernel as a launch with these constants compiles it."""
    names = [name for name in kernel.arg_names if name not in constants]
    types = {name: POINTERS.get(name, "*fp32") for name in names}
    types |= dict.fromkeys(set(names) & set(NUMBERS), "i32") | dict.fromkeys(set(names) & set(FLOATS), "fp32")
    source = ASTSource(fn=kernel, signature={**types, **dict.fromkeys(constants, "constexpr")}, constexprs=constants)
    options = {"num_warps": kernels.WARPS}
    return triton.compile(source, target=GPUTarget("cuda", capability, 32), options=options).asm["cubin"]


def local_bytes(machine_code):
    """Bytes of memory that a thread spills to."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(machine_code)
        file.flush()
        command = [triton.knobs.nvidia.cuobjdump.path, "--dump-resource-usage", file.name]
        usage = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return sum(int(number) for number in re.findall(r"(?:STACK|LOCAL):(\d+)", usage))


def main():
    """All divergences, with and without what a launch can leave out."""
    nothing = dict.fromkeys(("outside_high", "outside_low", "spread"))
    no_term = {**dict.fromkeys(("teacher", "teacher_high", "teacher_low", "scale", "terms_out", "derivatives_out"))}
    gradient = {"CLIPS": False, "ACCUMULATE": False, "LANES": kernels.LANES}
    launches = [
        (kernels._normalise, {"LANES": kernels.LANES, "PIECE": PIECE}),
        (kernels._scale, {"LANES": kernels.LANES}),
        (kernels._visit, {**no_term, "DIVERGENCE": None, **gradient}),
    ]
    for name in DISTRIBUTION_DIVERGENCES:
        divergence = {"DIVERGENCE": kernels.compiled(name)}
        value = {**dict.fromkeys(("out", "scale", "centre")), **nothing}
        launches.append((kernels._visit, {**nothing, **divergence, **gradient}))
        launches.append((kernels._visit, {**value, **divergence, **gradient, "CLIPS": True}))
    for capability in (80, 90):
        for kernel, constants in launches:
            spilled = local_bytes(compiled_kernel(kernel, capability, **constants))
            print(json.dumps({"kernel": kernel.__name__, "capability": capability, "spilled": spilled}))


if __name__ == "__main__":
    main()
