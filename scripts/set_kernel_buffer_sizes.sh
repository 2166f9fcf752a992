#!/bin/sh
# Lets programs ask for large UDP socket buffers, on Linux and macOS. Never makes a limit smaller.
#
#     sudo scripts/set_kernel_buffer_sizes.sh              until the next start of the machine
#     sudo scripts/set_kernel_buffer_sizes.sh --permanent  from now on
#          scripts/set_kernel_buffer_sizes.sh --show       changes nothing
#
# Without this Linux grants 208 KiB, which a link of 10 Gbit/s fills in 0.2 ms: what comes while the
# program does something else is lost, and has to be sent again.
set -eu

WANTED=268435456 # bytes; a program gets no more than it asks for, so the limit may be large
LINUX_LIMITS="net.core.rmem_max net.core.wmem_max"
MACOS_LIMITS="kern.ipc.maxsockbuf"
LINUX_FILE=${DESTDIR:-}/etc/sysctl.d/60-comfy-cluster.conf
MACOS_LABEL=org.comfy-cluster.buffers
MACOS_FILE=${DESTDIR:-}/Library/LaunchDaemons/$MACOS_LABEL.plist

fail() {
    echo "Error: $*" >&2
    exit 1
}

usage() {
    sed -n '2,9s/^# \{0,1\}//p' "$0"
}

limit() {
    sysctl -n "$1" 2>/dev/null || fail "this system has no $1"
}

show() {
    for name in $limits; do
        echo "$name = $(limit "$name")"
    done
}

# raise NAME VALUE: to VALUE or, where the kernel refuses so much, to the half, quarter, ... of it.
raise() {
    before=$(limit "$1")
    value=$2
    while [ "$value" -gt "$before" ]; do
        if refusal=$(sysctl -w "$1=$value" 2>&1 >/dev/null) && [ "$(limit "$1")" -ge "$value" ]; then
            echo "$1: $before -> $value"
            return
        fi
        value=$((value / 2))
    done
    if [ "$before" -ge "$2" ]; then
        echo "$1: $before, which is enough"
        return
    fi
    case ${refusal:-} in
        *ead-only* | *ermission\ denied* | *not\ permitted*)
            fail "$1 is $before and cannot be changed from here ($refusal)." \
                "In a container run this script on the machine that it runs on"
            ;;
    esac
    echo "$1: $before; the kernel takes no more than that" >&2
}

keep_on_linux() {
    mkdir -p "$(dirname "$LINUX_FILE")"
    {
        echo "# Large UDP socket buffers for ComfyUI Cluster: scripts/set_kernel_buffer_sizes.sh"
        for name in $limits; do
            echo "$name = $(limit "$name")"
        done
    } >"$LINUX_FILE"
    echo "kept in $LINUX_FILE"
}

keep_on_macos() {
    settings=""
    for name in $limits; do
        settings="$settings<string>$name=$(limit "$name")</string>"
    done
    mkdir -p "$(dirname "$MACOS_FILE")"
    cat >"$MACOS_FILE" <<EOF
<?xml version="1.0" encoding="UTF-8"?>
<!DOCTYPE plist PUBLIC "-//Apple//DTD PLIST 1.0//EN" "http://www.apple.com/DTDs/PropertyList-1.0.dtd">
<plist version="1.0">
<dict>
    <key>Label</key><string>$MACOS_LABEL</string>
    <key>ProgramArguments</key>
    <array><string>/usr/sbin/sysctl</string>$settings</array>
    <key>RunAtLoad</key><true/>
</dict>
</plist>
EOF
    chown root:wheel "$MACOS_FILE"
    chmod 644 "$MACOS_FILE"
    echo "kept in $MACOS_FILE"
}

case $(uname -s) in
    Linux) limits=$LINUX_LIMITS keep=keep_on_linux ;;
    Darwin) limits=$MACOS_LIMITS keep=keep_on_macos ;;
    *) fail "this is for Linux and macOS; $(uname -s) is neither" ;;
esac

is_permanent=false
for argument in "$@"; do
    case $argument in
        --permanent) is_permanent=true ;;
        --show)
            show
            exit
            ;;
        -h | --help)
            usage
            exit
            ;;
        *) fail "there is no option $argument: --permanent, --show or none" ;;
    esac
done

[ "$(id -u)" -eq 0 ] || fail "only root may change this: sudo $0 $*"
for name in $limits; do
    raise "$name" "$WANTED"
done
if $is_permanent; then
    $keep
fi
