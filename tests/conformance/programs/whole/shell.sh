# A shell job: the script itself half read, a pipeline that waits, a child in the background, a trap, here-documents.
set -u
cd "$CONFORM_DIR" || exit 3
faults=""
expect() { [ "$1" = "$2" ] || faults+="$3: '$2' became '$1'"$'\n'; }

trap 'went=yes' USR2
trap 'usr1=$((usr1 + 1))' USR1
usr1=0 went="" array=(one "two words" three)
kill -USR1 $$

# The pipeline has read a line and waits for more; its end counts what came through.
exec 7> >(while read -r line; do echo "seen $line"; done | sed -u s/seen/through/ | tee -a passed | wc -l > counted)
pipeline=$!
echo first >&7
until grep -q first passed 2> /dev/null; do sleep 0.01; done

(trap 'kill $!; exit 9' TERM; sleep 1000 & wait) 7>&- &
background=$!
child="" name=""
until [ "$name" = sleep ]; do
	sleep 0.01
	read -r child _ < "/proc/$background/task/$background/children" # it ends without a line's end
	[ -z "$child" ] || read -r name < "/proc/$child/comm"
done
exec 8< <(seq 5)
read -r one <&8
mypid=$$ before="$(ulimit -n) $(umask) $PWD ${array[1]}"

: > ready # by the shell itself: no process that is about to end
until [ "$went" ]; do wait "$background"; done

expect "$$" "$mypid" "the shell's PID"
expect "$(ulimit -n) $(umask) $PWD ${array[1]}" "$before" "what the shell is"
expect "$one" 1 "the first line of a substitution"
read -r two <&8
expect "$two" 2 "the second line of a substitution"
echo second >&7
exec 7>&-
wait "$pipeline"
expect "$?" 0 "the pipeline's status"
expect "$(tr '\n' , < passed)" "through first,through second," "what passed the pipeline"
expect "$(cat counted)" 2 "lines counted"
kill -TERM "$background"
wait "$background"
expect "$?" 9 "the background child's status"
expect "$usr1" 1 "signals trapped"
kill -USR1 $$
expect "$usr1" 2 "signals trapped afterwards"
expect "$(cat << END
here $((6 * 7))
END
)" "here 42" "a here-document"

printf %s "${faults:-ok}" > verdict.draft && mv verdict.draft verdict
[ -z "$faults" ]
