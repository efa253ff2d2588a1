#compdef switchback
# zsh completion for switchback(1)

local -a verbs everywhere options
local state line interfaces
verbs=(
    'status:one screen\: state, uplinks, session, outbox, last outage'
    'doctor:check the machine and every uplink, and say what to do'
    'explain:why this uplink and not another, and what happens next'
    'failover:the failover list'
    'failback:go back to the better uplink, or say whether to'
    'inhibit:no move to a better uplink for a while'
    'connect:connect'
    'disconnect:flush, close, and stay away'
    'reconnect:close and connect again'
    'publish:a message, as any local application would publish it'
    'flush:wait until everything is at the cloud'
    'outbox:what waits, and giving it up'
    'reset:forget what waits, the stored list, or both'
    'events:the black box'
    'config:check or show the configuration'
)
everywhere=(
    '--json[JSON in place of words]'
    '--runtime-dir[where the daemon listens]:directory:_files -/'
    '(- *)--help[the usage on one screen]'
    '(- *)--version[the version]'
)
interfaces=(/sys/class/net/*(N:t))
interfaces=(${interfaces:#lo})

_arguments -C $everywhere '1:verb:->verb' '*::argument:->argument' && return

case $state in
    verb) _describe -t verbs verb verbs ;;
    argument)
        local timeout='--timeout[how long to wait]:duration:(5s 30s 5min)'
        case $words[1] in
            status) options=('--watch[keep it up to date]') ;;
            doctor) options=('--config[the file]:file:_files') ;;
            failover)
                if ((CURRENT == 2)); then
                    compadd show set clear
                elif [[ $words[2] == set ]]; then
                    compadd ethernet wifi cell $interfaces
                fi
                return
                ;;
            failback) options=('1:what:(now auto never)' '--for[for how long]:duration:(1h 24h 7d)') ;;
            inhibit) options=('1:duration, 0s ends it:(0s 5min 30min 1h)') ;;
            connect) options=("--via[try one interface once]:interface:($interfaces)" '--for[for how long]:duration:(5min 1h)' $timeout) ;;
            disconnect) options=('--force[close at once]') ;;
            reconnect | flush) options=($timeout) ;;
            publish)
                options=(
                    '1:topic:' '2:payload, - for standard input:'
                    '--class[class of the message]:class:(critical normal bulk low)'
                    '--qos[towards the cloud]:qos:(0 1 2)'
                    '--retain[the cloud keeps it for newcomers]'
                    '--wait[how far it must have come]:stage:(stored sent acked)'
                    $timeout
                )
                ;;
            outbox)
                options=('1:what:(show drop)' '2:class:(critical normal bulk low all rejected)' '(-y --yes)'{-y,--yes}'[do not ask]')
                ;;
            reset) options=('1:what:(outbox failover all)' '(-y --yes)'{-y,--yes}'[do not ask]') ;;
            events)
                options=(
                    '(-f --follow)'{-f,--follow}'[go on with what happens from now on]'
                    '--since[from when on]:duration or time:(10min 1h 24h 7d)'
                    '--boot[this boot only]'
                    '--limit[how many lines]:number:(20 100 1000)'
                )
                ;;
            config) options=('1:what:(check show default)' '2:file:_files' '--config[the file]:file:_files') ;;
        esac
        _arguments $everywhere $options
        ;;
esac
