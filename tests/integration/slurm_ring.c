/* ring STEPS FILE: numbers go round among the ranks of MPI and are summed up; the last step waits for FILE. */
#include <mpi.h>
#include <stdio.h>
#include <stdlib.h>
#include <unistd.h>

#define SIZE 1000

int main(int argc, char **argv)
{
	double here[SIZE], there[SIZE], sum = 0;
	int rank, ranks, steps = atoi(argv[1]);

	MPI_Init(&argc, &argv);
	MPI_Comm_rank(MPI_COMM_WORLD, &rank);
	MPI_Comm_size(MPI_COMM_WORLD, &ranks);
	for (int i = 0; i < SIZE; i++)
		here[i] = rank + i * 0.001;
	for (int step = 0; step < steps; step++) {
		double all;

		MPI_Sendrecv(here, SIZE, MPI_DOUBLE, (rank + 1) % ranks, 0, there, SIZE, MPI_DOUBLE,
			     (rank + ranks - 1) % ranks, 0, MPI_COMM_WORLD, MPI_STATUS_IGNORE);
		for (int i = 0; i < SIZE; i++)
			here[i] = there[i] * 1.0000001 + 1e-6;
		MPI_Allreduce(&here[rank], &all, 1, MPI_DOUBLE, MPI_SUM, MPI_COMM_WORLD);
		sum += all;
		if (rank == 0) {
			printf("step %d\n", step);
			fflush(stdout);
			while (step == steps - 1 && access(argv[2], F_OK))
				usleep(10000);
		}
		usleep(1000);
	}
	printf("rank %d of %d: %.17g, task %s\n", rank, ranks, sum, getenv("SLURM_PROCID"));
	return MPI_Finalize();
}
