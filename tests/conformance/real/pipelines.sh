#!/bin/bash
# Pipelines of short-lived processes, process substitution, a coprocess, here documents and background jobs.
set -eu -o pipefail

coproc sed -u y/abcdef/ABCDEF/
while ! [ -e "$CONFORM_DIR/enough" ]; do
	sorted=$(seq 20000 | awk '{ print ($1 * 7919) % 20011 }' | sort -n | sha256sum | cut -c1-20)
	joined=$(paste -d: <(seq 500) <(seq 500 -1 1) | grep -v 7 | wc -c)
	jobs=()
	for n in 1 2 3; do
		{ seq "$n" 3000 | gzip | gunzip | sha256sum >"$CONFORM_DIR/part$n"; } &
		jobs+=($!)
	done
	wait "${jobs[@]}" # without names it would wait for the coprocess too
	parts=$(cat "$CONFORM_DIR"/part[123] | sha256sum | cut -c1-20)
	echo "$parts" >&"${COPROC[1]}"
	read -r upper <&"${COPROC[0]}"
	counted=$(cat <<-END | wc -l
		one
		two
	END
	)
	echo "$sorted $joined $upper $counted" >>"$CONFORM_DIR/lines"
done
