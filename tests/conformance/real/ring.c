/* MPI: four ranks on one node pass messages of many sizes around a ring and add up what they have. */
#include <mpi.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

enum { LARGEST = 1 << 16, ROUNDS = 60 };

static uint64_t mixed(uint64_t word)
{
	word ^= word >> 31;
	return word * 0x9e3779b97f4a7c15u + 1;
}

int main(int count, char **arguments)
{
	static uint64_t mine[LARGEST], theirs[LARGEST];
	int rank, size, enough = 0;
	char path[4096];

	MPI_Init(&count, &arguments);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &size);
	while (!enough) {
		uint64_t sum = rank + 1, all = 0;
		for (int round = 0; round < ROUNDS; round++) {
			int length = 1 << (round % 17);
			for (int i = 0; i < length; i++)
				mine[i] = sum = mixed(sum + i);
			MPI_Sendrecv(mine, length, MPI_UINT64_T, (rank + 1) % size, round, theirs, length, MPI_UINT64_T,
				     (rank + size - 1) % size, round, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
			for (int i = 0; i < length; i++)
				sum ^= mixed(theirs[i]);
			MPI_Allreduce(&sum, &all, 1, MPI_UINT64_T, MPI_BXOR, MPI_COMM_WORLD);
			sum += all;
			if (round % 20 == 19)
				MPI_Barrier(MPI_COMM_WORLD);
		}
		if (rank == 0) {
			snprintf(path, sizeof(path), "%s/lines", getenv("CONFORM_DIR"));
			FILE *lines = fopen(path, "a");
			if (!lines || fprintf(lines, "%016llx\n", (unsigned long long)all) < 0 || fclose(lines))
				MPI_Abort(MPI_COMM_WORLD, 1);
			snprintf(path, sizeof(path), "%s/enough", getenv("CONFORM_DIR"));
			enough = !access(path, F_OK);
		}
		MPI_Bcast(&enough, 1, MPI_INT, 0, MPI_COMM_WORLD);
	}
	return MPI_Finalize();
}
