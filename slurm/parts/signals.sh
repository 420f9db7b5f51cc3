# SLURM's warning (USR1) and its end (TERM), from the first moment on. Both are passed on: ranks save at one step and
# leave.
asked='' step=''
ask() { asked=$1; echo "$(date +%FT%T) upmix: the batch script got $1"; [[ -z $step ]] || kill -USR1 "$step" 2>/dev/null; }
trap 'ask USR1' USR1; trap 'ask TERM' TERM
