"""The options engine: units, options, the INI reader, the merge of all sources. Pure, and knows no particular option."""
