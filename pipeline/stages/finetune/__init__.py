"""Stage `finetune`: a head for classes, answers in a text, or tags, on any model that has one."""
