# fish completion for switchback(1)

function __switchback_interfaces
    for link in /sys/class/net/*
        string match -v lo (basename $link)
    end
end

function __switchback_first
    not __fish_seen_subcommand_from status doctor explain failover failback inhibit connect disconnect reconnect publish flush \
        outbox reset events config
end

function __switchback_verb
    complete -c switchback -n __switchback_first -a $argv[1] -d $argv[2]
end

complete -c switchback -f
complete -c switchback -l json -d 'JSON in place of words'
complete -c switchback -l runtime-dir -xa '(__fish_complete_directories)' -d 'Where the daemon listens'
complete -c switchback -s h -l help -d 'The usage on one screen'
complete -c switchback -s V -l version -d 'The version'

__switchback_verb status 'One screen: state, uplinks, session, outbox, last outage'
complete -c switchback -n '__fish_seen_subcommand_from status' -l watch -d 'Keep it up to date'

__switchback_verb doctor 'Check the machine and every uplink, and say what to do'
complete -c switchback -n '__fish_seen_subcommand_from doctor' -l config -rF -d 'The file'

__switchback_verb explain 'Why this uplink and not another, and what happens next'

__switchback_verb failover 'The failover list'
complete -c switchback -n '__fish_seen_subcommand_from failover; and not __fish_seen_subcommand_from show set clear' \
    -a 'show set clear'
complete -c switchback -n '__fish_seen_subcommand_from failover; and __fish_seen_subcommand_from set' \
    -a 'ethernet wifi cell (__switchback_interfaces)'

__switchback_verb failback 'Go back to the better uplink, or say whether to'
complete -c switchback -n '__fish_seen_subcommand_from failback; and not __fish_seen_subcommand_from now auto never' \
    -a 'now auto never'
complete -c switchback -n '__fish_seen_subcommand_from failback' -l for -xa '1h 24h 7d' -d 'For how long'

__switchback_verb inhibit 'No move to a better uplink for a while'
complete -c switchback -n '__fish_seen_subcommand_from inhibit' -a '0s 5min 30min 1h'

__switchback_verb connect 'Connect'
complete -c switchback -n '__fish_seen_subcommand_from connect' -l via -xa '(__switchback_interfaces)' \
    -d 'Try one interface once'
complete -c switchback -n '__fish_seen_subcommand_from connect' -l for -xa '5min 1h' -d 'And then all is as before'

__switchback_verb disconnect 'Flush, close, and stay away'
complete -c switchback -n '__fish_seen_subcommand_from disconnect' -l force -d 'Close at once'

__switchback_verb reconnect 'Close and connect again'

__switchback_verb publish 'A message, as any local application would publish it'
complete -c switchback -n '__fish_seen_subcommand_from publish' -l class -xa 'critical normal bulk low' -d 'Class of the message'
complete -c switchback -n '__fish_seen_subcommand_from publish' -l qos -xa '0 1 2' -d 'Towards the cloud'
complete -c switchback -n '__fish_seen_subcommand_from publish' -l retain -d 'The cloud keeps it for newcomers'
complete -c switchback -n '__fish_seen_subcommand_from publish' -l wait -xa 'stored sent acked' \
    -d 'How far it must have come'

__switchback_verb flush 'Wait until everything is at the cloud'
complete -c switchback -n '__fish_seen_subcommand_from connect reconnect publish flush' -l timeout -xa '5s 30s 5min' \
    -d 'How long to wait'

__switchback_verb outbox 'What waits, and giving it up'
complete -c switchback -n '__fish_seen_subcommand_from outbox; and not __fish_seen_subcommand_from show drop' -a 'show drop'
complete -c switchback -n '__fish_seen_subcommand_from outbox; and __fish_seen_subcommand_from drop' \
    -a 'critical normal bulk low all rejected'

__switchback_verb reset 'Forget what waits, the stored list, or both'
complete -c switchback -n '__fish_seen_subcommand_from reset' -a 'outbox failover all'
complete -c switchback -n '__fish_seen_subcommand_from outbox reset' -s y -l yes -d 'Do not ask'

__switchback_verb events 'The black box'
complete -c switchback -n '__fish_seen_subcommand_from events' -s f -l follow -d 'Go on with what happens from now on'
complete -c switchback -n '__fish_seen_subcommand_from events' -l since -xa '10min 1h 24h 7d' -d 'From when on'
complete -c switchback -n '__fish_seen_subcommand_from events' -l boot -d 'This boot only'
complete -c switchback -n '__fish_seen_subcommand_from events' -l limit -xa '20 100 1000' -d 'How many lines'

__switchback_verb config 'Check or show the configuration'
complete -c switchback -n '__fish_seen_subcommand_from config; and not __fish_seen_subcommand_from check show default' \
    -a 'check show default'
complete -c switchback -n '__fish_seen_subcommand_from config; and __fish_seen_subcommand_from check show' -F
complete -c switchback -n '__fish_seen_subcommand_from config' -l config -rF -d 'The file'
