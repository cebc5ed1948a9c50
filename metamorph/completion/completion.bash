# Tab completion of metamorph, in ~/.bashrc: source <(metamorph completion bash)
_metamorph() {
    local word
    COMPREPLY=()
    while IFS= read -r word; do
        COMPREPLY+=("$word")
    done < <(printf '%s\0' "${COMP_WORDS[@]:1:COMP_CWORD}" |
        "${COMP_WORDS[0]}" completion bash --candidates 2>/dev/null)
}
complete -o default -F _metamorph metamorph
