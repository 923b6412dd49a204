# `just` alone lists the recipes; each is one of the scripts in scripts/.

default:
    @just --list

# Edge, Agent and a sample Host on this machine, with the curl line to try
try *ARGS:
    scripts/try {{ARGS}}

# All checks and tests; `just check quick` leaves out the system tests
check *ARGS:
    scripts/check {{ARGS}}

# Measure against ssh, nginx and direct
bench *ARGS:
    scripts/bench {{ARGS}}
