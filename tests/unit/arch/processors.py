"""What real processors have: the features of /proc/cpuinfo by which programs choose code, and some by which none does.

As qemu 7.2 has them for its models of processors; Zen 4 and Sapphire Rapids from the manuals.
"""

from __future__ import annotations

FLAGS = {
    "Nehalem": ("cx16 lahf_lm pni popcnt sse4_1 sse4_2 ssse3"),
    "Westmere": ("aes cx16 lahf_lm pclmulqdq pni popcnt sse4_1 sse4_2 ssse3"),
    "Sandy Bridge": ("aes avx cx16 lahf_lm pclmulqdq pni popcnt sse4_1 sse4_2 ssse3 xsave"),
    "Ivy Bridge": ("aes avx cx16 erms f16c fsgsbase lahf_lm pclmulqdq pni popcnt rdrand sse4_1 sse4_2 ssse3 xsave"),
    "Haswell": (
        "abm aes avx avx2 bmi1 bmi2 cx16 erms f16c fma fsgsbase lahf_lm movbe pclmulqdq pni popcnt rdrand "
        "sse4_1 sse4_2 ssse3 xsave"
    ),
    "Broadwell": (
        "abm adx aes avx avx2 bmi1 bmi2 cx16 erms f16c fma fsgsbase lahf_lm movbe pclmulqdq pni popcnt rdrand "
        "rdseed sse4_1 sse4_2 ssse3 xsave"
    ),
    "Skylake": (
        "abm adx aes avx avx2 bmi1 bmi2 cx16 erms f16c fma fsgsbase lahf_lm movbe pclmulqdq pni popcnt rdrand "
        "rdseed sse4_1 sse4_2 ssse3 xsave xsavec"
    ),
    "Skylake-SP": (
        "abm adx aes avx avx2 avx512bw avx512cd avx512dq avx512f avx512vl bmi1 bmi2 clflushopt clwb cx16 erms "
        "f16c fma fsgsbase lahf_lm movbe pclmulqdq pni popcnt rdrand rdseed sse4_1 sse4_2 ssse3 xsave xsavec"
    ),
    "Cascade Lake": (
        "abm adx aes avx avx2 avx512_vnni avx512bw avx512cd avx512dq avx512f avx512vl bmi1 bmi2 clflushopt "
        "clwb cx16 erms f16c fma fsgsbase lahf_lm movbe pclmulqdq pni popcnt rdrand rdseed sse4_1 sse4_2 "
        "ssse3 xsave xsavec"
    ),
    "Ice Lake": (
        "abm adx aes avx avx2 avx512_bitalg avx512_vbmi2 avx512_vnni avx512_vpopcntdq avx512bw avx512cd "
        "avx512dq avx512f avx512vbmi avx512vl bmi1 bmi2 clflushopt clwb cx16 erms f16c fma fsgsbase gfni "
        "lahf_lm movbe pclmulqdq pni popcnt rdrand rdseed sse4_1 sse4_2 ssse3 vaes vpclmulqdq xsave xsavec"
    ),
    "Knights Mill": (
        "abm adx aes avx avx2 avx512_vpopcntdq avx512cd avx512er avx512f avx512pf bmi1 bmi2 cx16 erms f16c "
        "fma fsgsbase lahf_lm movbe pclmulqdq pni popcnt rdrand rdseed sse4_1 sse4_2 ssse3 xsave"
    ),
    "Bulldozer": ("abm aes avx cx16 fma4 lahf_lm pclmulqdq pni popcnt sse4_1 sse4_2 sse4a ssse3 xop xsave"),
    "Piledriver": ("abm aes avx cx16 f16c fma fma4 lahf_lm pclmulqdq pni popcnt sse4_1 sse4_2 sse4a ssse3 xop xsave"),
    "Zen": (
        "abm adx aes avx avx2 bmi1 bmi2 clflushopt cx16 f16c fma fsgsbase lahf_lm movbe pclmulqdq pni popcnt "
        "rdrand rdseed sha_ni sse4_1 sse4_2 sse4a ssse3 xsave xsavec"
    ),
    "Zen 2": (
        "abm adx aes avx avx2 bmi1 bmi2 clflushopt clwb cx16 f16c fma fsgsbase lahf_lm movbe pclmulqdq pni "
        "popcnt rdpid rdrand rdseed sha_ni sse4_1 sse4_2 sse4a ssse3 xsave xsavec"
    ),
    "Zen 3": (
        "abm adx aes avx avx2 bmi1 bmi2 clflushopt clwb cx16 erms f16c fma fsgsbase fsrm lahf_lm movbe "
        "pclmulqdq pni popcnt rdpid rdrand rdseed sha_ni sse4_1 sse4_2 sse4a ssse3 xsave xsavec"
    ),
    "Zen 4": (
        "abm adx aes avx avx2 avx512_bf16 avx512_bitalg avx512_vbmi2 avx512_vnni avx512_vpopcntdq avx512bw "
        "avx512cd avx512dq avx512f avx512ifma avx512vbmi avx512vl bmi1 bmi2 clflushopt clwb cx16 erms f16c "
        "fma fsgsbase fsrm gfni lahf_lm movbe pclmulqdq pni popcnt rdpid rdrand rdseed sha_ni sse4_1 sse4_2 "
        "sse4a ssse3 vaes vpclmulqdq xsave xsavec"
    ),
    "Sapphire Rapids": (
        "abm adx aes amx_bf16 amx_int8 amx_tile avx avx2 avx512_bf16 avx512_bitalg avx512_fp16 avx512_vbmi2 "
        "avx512_vnni avx512_vpopcntdq avx512bw avx512cd avx512dq avx512f avx512ifma avx512vbmi avx512vl "
        "avx_vnni bmi1 bmi2 clflushopt clwb cx16 erms f16c fma fsgsbase fsrm gfni lahf_lm movbe movdir64b "
        "movdiri pclmulqdq pni popcnt rdpid rdrand rdseed serialize sha_ni sse4_1 sse4_2 ssse3 vaes "
        "vpclmulqdq waitpkg xsave xsavec"
    ),
}
"""By the names of processors."""
