#!/bin/sh
# SLURM's daemons and sacct's database for the tests' own cluster, where root and apt allow. Nothing is started.
set -u
command -v slurmctld >/dev/null || [ -x /usr/sbin/slurmctld ] && exit 0
[ "$(id -u)" = 0 ] || { echo "SLURM is not installed: only root can"; exit 0; }
command -v apt-get >/dev/null || { echo "SLURM is not installed: no apt-get here"; exit 0; }
policy=/usr/sbin/policy-rc.d
if [ ! -e $policy ]; then # keeps packages from starting their daemons
  printf '#!/bin/sh\nexit 101\n' >$policy && chmod 755 $policy
  trap 'rm -f $policy' EXIT
fi
export DEBIAN_FRONTEND=noninteractive
packages="slurm-wlm slurmdbd slurm-wlm-mysql-plugin mariadb-server-core"
install() { apt-get install -y -qq --no-install-recommends $packages >/dev/null; }
install 2>/dev/null || { apt-get update -qq && install; } || echo "SLURM is not installed: apt-get could not"
