step=''
trap '[[ -z $step ]] || kill -TERM "$step" 2>/dev/null' TERM
check_nodes || exit 1
start "${arguments[@]}" &
step=$!
while :; do
  wait "$step"; code=$?
  kill -0 "$step" 2>/dev/null || break
done
exit "$code"
