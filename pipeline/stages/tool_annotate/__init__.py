"""Stage `tool_annotate`: calls of tools put into text where their results help."""
