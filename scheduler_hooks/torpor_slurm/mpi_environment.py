"""Environment variables with which MPI programs can be saved, and woken on another node.

Open MPI and MPICH read them, whether the stand-in srun or an mpirun in the script starts the ranks.
"""

from __future__ import annotations

from pathlib import Path

_TCP = {
    "OMPI_MCA_pml": "ob1",
    "OMPI_MCA_btl": "^openib,uct,ofi,usnic",
    "OMPI_MCA_mtl": "^psm2,ofi,portals4",
    "UCX_TLS": "tcp,self,sm",
    "FI_PROVIDER": "tcp",
    "I_MPI_FABRICS": "shm:ofi",
}
"""Use shared memory within the node, and TCP otherwise: the memory and queues of a network adapter cannot be saved."""


def variables(directory: Path, *, tcp: bool) -> dict[str, str]:
    """The variables that are set for an application, unless the user has set them.

    Args:
        directory: the job directory, which has this path on every node.
        tcp: whether MPI must not use the adapter of a fast network (InfiniBand and the like).
    """
    return {
        # A session directory in /tmp would not be there on the next node.
        "OMPI_MCA_orte_tmpdir_base": str(directory),
        "PRTE_MCA_prte_tmpdir_base": str(directory),
        "OMPI_MCA_shmem_mmap_enable_nfs_warning": "0",
        # Open MPI warns about user namespaces, and a wake may put the ranks into one.
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
        # Shared huge pages are not kept.
        "UCX_POSIX_HUGETLB_MODE": "n",
        "UCX_SYSV_HUGETLB_MODE": "n",
        **(_TCP if tcp else {}),
    }
