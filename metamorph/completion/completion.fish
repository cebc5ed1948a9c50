# Tab completion of metamorph, in ~/.config/fish/config.fish: metamorph completion fish | source
function __metamorph_candidates
    set --local words (commandline --tokenize --cut-at-cursor --current-process)
    set --local current (commandline --current-token --cut-at-cursor)
    set --local found (printf '%s\0' $words[2..] "$current" |
        $words[1] completion fish --candidates 2>/dev/null)
    if set --query found[1]
        string join \n -- $found
    else
        __fish_complete_path "$current"
    end
end
complete --command metamorph --no-files --arguments '(__metamorph_candidates)'
