"""Sentences of the corpus that say nothing about anyone: openings, asides, endings."""

from __future__ import annotations

OPENINGS = (
    "It was a grey morning, and the rain had not yet made up its mind.",
    "The old people say that the town was built around a well.",
    "There is a bench in front of the town hall, and much is told on it.",
    "On market days the whole town is up before the sun.",
    "This is a small town, and it has room for all kinds of people.",
    "Whoever comes here for the first time should walk slowly.",
    "In spring the windows are opened and the talk begins again.",
    "I have often thought about how a town holds together.",
    "The snow came early that year, and nobody was ready for it.",
    "A traveller once wrote down all that he heard in our town.",
    "Some stories are short because nothing happens in them.",
    "When the bells ring, people put down what they are holding.",
    "The summer had been long, and the roads were full of dust.",
    "People who have never been here think that it is quiet.",
    "My aunt used to say that every street has a memory.",
    "The evening was warm, and most doors stood open.",
)

ASIDES = (
    "The wind turned and brought the smell of wet grass.",
    "That is how it has always been, and nobody complains.",
    "But one thing leads to another, as it does on long evenings.",
    "The clouds went over the roofs like slow boats.",
    "I forget who told me so, but I have no reason to doubt it.",
    "There was a time when all of this was a field.",
    "Time passes more slowly here than in the city.",
    "And then, of course, there is the matter of the weather.",
    "One could write a whole book about it, and perhaps someone will.",
    "The children ran past and were gone again.",
    "A door closed somewhere, and it was still.",
    "It is strange how much a person forgets and how much stays.",
    "This brings me to something else that I wanted to tell.",
    "Let us leave that aside for a moment.",
    "The lamps were lit one after the other.",
    "Not much has changed since then, apart from the paint.",
    "In autumn the leaves lie so deep that one can hear every step.",
    "Some think otherwise, and they may be right too.",
    "It is worth a second look, like most things.",
    "The river carries the sounds of the town a long way down.",
    "If you listen well, you hear a clock from the tower.",
    "People nod to each other and go on.",
    "Nothing more was said about it that day.",
    "You can learn a lot by sitting still.",
    "The winter before, it had been much the same.",
    "Perhaps that is why strangers like to come back.",
    "A letter arrived, was read aloud and was put away.",
    "The roofs were white in the morning and black at noon.",
    "On the way home one meets everybody twice.",
    "I will come back to this if there is time.",
    "A good story needs a rest in the middle.",
    "The dust danced in the light that fell through the window.",
    "It may not matter much, yet it is good to have it said.",
    "Where the road bends, there is a tree with a hole in it.",
    "So the afternoon went by, with tea and with talk.",
    "The newspaper wrote about it, but only on the last page.",
)

ENDINGS = (
    "That is all for today.",
    "And so the day came to its end.",
    "Then everybody went home.",
    "The rest is for another time.",
    "After that the lights went out, one by one.",
    "It will be the same tomorrow, and that is a comfort.",
    "Here my notes end.",
    "More there is not to tell.",
)

THEMES = (
    "On the use of mornings",
    "A few words about rain",
    "Why the town has no wall",
    "On counting and on being counted",
    "About neighbours",
    "Notes from a long walk",
    "On bread, work and sleep",
    "What the clock has seen",
    "About the things one hears",
    "A letter that was never sent",
    "On animals and their people",
    "Thoughts at the end of the week",
)

LINKS = (
    "As I said, ",
    "It is well known that ",
    "Everyone can tell you that ",
    "Now ",
    "By the way, ",
    "One must not forget that ",
    "I also heard that ",
    "It is true that ",
    "Besides, ",
    "",
    "",
    "",
    "",
)

SPEAKERS = (
    "the traveller", "the old man", "the girl", "my aunt", "the boy", "the postman",
    "the old woman", "the visitor", "a neighbour", "the clerk",
)  # fmt: skip
