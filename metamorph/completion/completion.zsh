#compdef metamorph
# Tab completion of metamorph, in ~/.zshrc after compinit: source <(metamorph completion zsh)
_metamorph() {
    local -a found
    found=("${(@f)$(print -rN -- "${(@)words[2,CURRENT]}" |
        $words[1] completion zsh --candidates 2>/dev/null)}")
    if [[ -n "$found" ]]; then
        compadd -- "${found[@]}"
    else
        _files
    fi
}
compdef _metamorph metamorph
