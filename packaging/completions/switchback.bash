# bash completion for switchback(1)

_switchback() {
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]}
    local verb='' object='' words='' files='' link i
    # The verb and the word behind it; options may stand anywhere.
    for ((i = 1; i < COMP_CWORD; i++)); do
        case ${COMP_WORDS[i]} in
            --runtime-dir | --config | --via | --timeout | --for | --since | --limit | --class | --qos | --wait) ((i++)) ;;
            -*) ;;
            *) if [[ -z $verb ]]; then verb=${COMP_WORDS[i]}; elif [[ -z $object ]]; then object=${COMP_WORDS[i]}; fi ;;
        esac
    done
    local interfaces='ethernet wifi cell'
    for link in /sys/class/net/*; do
        [[ -e $link && $link != */lo ]] && interfaces+=" ${link##*/}"
    done

    case $previous in
        --runtime-dir) files=-d ;;
        --config) files=-f ;;
        --via) words=${interfaces#ethernet wifi cell} ;;
        --timeout | --for) words='5s 30s 5min 1h 24h' ;;
        --since) words='10min 1h 24h 7d' ;;
        --limit) words='20 100 1000' ;;
        --class) words='critical normal bulk low' ;;
        --qos) words='0 1 2' ;;
        --wait) words='stored sent acked' ;;
        *)
            case $verb in
                '') words='status doctor explain failover failback inhibit connect disconnect reconnect publish flush outbox reset events config' ;;
                status) words=--watch ;;
                failover)
                    case $object in
                        '') words='show set clear' ;;
                        set) words=$interfaces ;;
                    esac
                    ;;
                failback) words=--for && [[ -z $object ]] && words+=' now auto never' ;;
                inhibit) words='0s 5min 30min 1h' ;;
                connect) words='--via --for --timeout' ;;
                disconnect) words=--force ;;
                reconnect | flush) words=--timeout ;;
                publish) words='--class --qos --retain --wait --timeout' ;;
                events) words='-f --follow --since --boot --limit' ;;
                outbox)
                    words=--yes
                    case $object in
                        '') words+=' show drop' ;;
                        drop) words+=' critical normal bulk low all rejected' ;;
                    esac
                    ;;
                reset) words='outbox failover all --yes' ;;
                doctor) words=--config ;;
                config)
                    words=--config
                    case $object in
                        '') words+=' check show default' ;;
                        check | show) files=-f ;;
                    esac
                    ;;
            esac
            [[ $current == -* ]] && words+=' --json --runtime-dir --help --version'
            ;;
    esac
    COMPREPLY=($(compgen -W "$words" -- "$current"))
    if [[ $files ]]; then
        compopt -o filenames 2>/dev/null
        COMPREPLY+=($(compgen $files -- "$current"))
    fi
}

complete -F _switchback switchback
