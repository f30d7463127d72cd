# What several tasks of a step get and give: run below plain sbatch and below Torpor, it leaves the same.
# Each file holds what a step printed, and its exit code.
begin() { name=$1; shift; "$@" >"$name.out" 2>"$name.err"; echo $? >"$name.code"; }

begin environment srun -n4 sh -c 'env >environment.$SLURM_PROCID'
begin default srun sh -c 'env >default.$SLURM_PROCID'
begin one srun -n1 sh -c 'env >one.$SLURM_PROCID'
begin exact srun -n2 -c2 -J named --exact -m cyclic sh -c 'env >exact.$SLURM_PROCID'
begin crowd srun -O -n6 -l sh -c 'env >crowd.$SLURM_PROCID'
begin bound srun -n2 --cpu-bind=map_cpu:0,1 sh -c 'env >bound.$SLURM_PROCID'
begin state srun -n2 sh -c 'grep -E "^Sig(Ign|Blk)" /proc/self/status'

begin label srun -n4 -l sh -c 'echo out $SLURM_PROCID; echo err $SLURM_PROCID >&2; printf end'
begin wide srun -O -n12 -l echo x
begin whole srun -n4 sh -c 'printf a; sleep 0.1; printf b; sleep 0.1; echo c'
begin codes srun -n4 sh -c 'exit $SLURM_PROCID'
begin killed srun -n2 sh -c '[ $SLURM_PROCID = 1 ] && kill -KILL $$; exit 1'
begin bad srun -K -n2 sh -c '[ $SLURM_PROCID = 1 ] && exit 5; exec sleep 1000'
begin trapped srun --kill-on-bad-exit=1 -n2 sh -c \
	'trap "echo told; exit 3" TERM; if [ $SLURM_PROCID = 1 ]; then until [ -e up ]; do sleep 0.1; done; exit 5; fi; touch up; while :; do sleep 0.1; done'
begin wait srun -W1 -n2 sh -c '[ $SLURM_PROCID = 1 ] && exit 0; exec sleep 1000'
begin none srun -n2 /nonexistent
begin denied srun -n2 /etc/passwd
begin many srun -n9 true
begin nothing srun -n2

printf 'a\nb\n' | begin all srun -n2 sh -c 'cat; echo end $SLURM_PROCID'
printf 'a\nb\n' | begin first srun -n2 -i1 sh -c 'cat; echo end $SLURM_PROCID'
begin files srun -n2 -o 'o.%t.%n.%2t' sh -c 'echo out $SLURM_PROCID; echo err $SLURM_PROCID >&2'
begin together srun -n2 -o together -e 'e.%t' sh -c 'echo out $SLURM_PROCID; echo err $SLURM_PROCID >&2'
begin only srun -n2 -o1 sh -c 'echo out $SLURM_PROCID; echo err $SLURM_PROCID >&2'
begin labelled srun -n2 -l -o 'l.%t' echo x
cat >programs <<'END'
# tasks, program and arguments

0 echo zero %t %o
1-2 echo "a b" 'c d' e\ f $HOME x%ty %o
* echo rest %t %o
END
begin programs srun -n4 -l --multi-prog programs more
echo '0 echo a' >few
begin few srun -n2 --multi-prog few
printf '0 echo a\n0-1 echo b\n' >twice
begin twice srun -n2 --multi-prog twice
exit 0
