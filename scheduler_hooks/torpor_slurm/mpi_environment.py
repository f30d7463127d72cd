"""The environment in which MPI programs can be saved, and woken on another node.

Open MPI and MPICH read these variables whoever starts them: srun below the supervisor, or mpirun in the script.
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
"""Shared memory within the node, TCP else: a network adapter's own memory and queues cannot be saved."""


def variables(directory: Path, *, tcp: bool) -> dict[str, str]:
    """The variables of an application, where its user has not set them.

    Args:
        directory: the job's, which every node has under this name.
        tcp: whether the adapter of a fast network is to be left alone.
    """
    return {
        # A session directory in /tmp would not be there on the next node.
        "OMPI_MCA_orte_tmpdir_base": str(directory),
        "PRTE_MCA_prte_tmpdir_base": str(directory),
        "OMPI_MCA_shmem_mmap_enable_nfs_warning": "0",
        # It warns of user namespaces, which a wake may bring.
        "OMPI_MCA_btl_vader_single_copy_mechanism": "none",
        # Shared huge pages are not kept.
        "UCX_POSIX_HUGETLB_MODE": "n",
        "UCX_SYSV_HUGETLB_MODE": "n",
        **(_TCP if tcp else {}),
    }
