"""What the blocks of a kernel may use of an SM, by NVIDIA's name of the architecture."""

RESERVED_SHARED_BYTES = 1024  # of each block, for the system
SM_REGISTERS = 65_536
WARP_SIZE = 32
WARPS_OF_A_GROUP = 4  # those that issue a product together, and take registers together

# Shared memory that one block may use; an SM has as much and what is reserved for that block.
MOST_SHARED_BYTES = {
    "sm_80": 166_912,  # 163 KiB: A100
    "sm_90": 232_448,  # 227 KiB: H100, H200
    "sm_100": 232_448,  # B200
    "sm_120": 101_376,  # 99 KiB: RTX 5090
}


def capability(architecture: str) -> int:
    """sm_90 as Triton counts: 90."""
    return int(architecture.removeprefix("sm_"))
