"""Sentences of 3 to 90 words, in pairs that mean about the same."""

PAIRS = (
    ("It is raining.", "Rain is falling outside."),
    ("Where is the station?", "How do I get to the railway station from here?"),
    ("A cat sleeps on the warm windowsill.", "The kitten is dozing by the sunny window."),
    ("The bank raised its interest rate again.", "Borrowing money became more expensive after the central bank's move."),
    (
        "She plays the violin in the city orchestra and teaches children at weekends.",
        "On Saturdays and Sundays the violinist, a member of the local symphony, gives music lessons to kids.",
    ),
    (
        "Water boils at a lower temperature on a high mountain, because the air presses less on its surface.",
        "Since atmospheric pressure falls with altitude, cooks in the mountains find that water boils before "
        "it reaches one hundred degrees.",
    ),
    (
        "The team came back from two goals down, scored three times in the last ten minutes and won the cup.",
        "After trailing by two, the side turned the final around with three late goals and lifted the trophy.",
    ),
    (
        "Attention lets every word of a sentence look at every other word and decide how much each one matters.",
        "In a transformer, each token forms a weighted average over all the tokens, and the weights say which "
        "of them are relevant to it.",
    ),
    (
        "Bees carry pollen from flower to flower. Without them, many fruits and vegetables would not grow, and "
        "farmers would have to pollinate their fields by hand.",
        "A great part of our food depends on insects that pollinate crops. Where bees disappear, harvests of "
        "apples, almonds and pumpkins shrink, and growers must find costly replacements.",
    ),
    (
        "To bake bread, mix flour, water, salt and yeast, knead the dough for ten minutes, let it rise until it "
        "has doubled, shape a loaf, let it rise once more, and bake it in a very hot oven until the crust is brown.",
        "Bread needs four ingredients and patience: knead flour, water, yeast and salt into a smooth dough, rest it "
        "twice, and put the loaf into a well heated oven until it is golden and sounds hollow when tapped.",
    ),
    (
        "The expedition left the harbour in spring with two ships and sixty men. By autumn the ice had closed around "
        "them. They spent the winter in darkness, burned their furniture for warmth, ate what the hunters brought, "
        "and when the sun returned they dragged their boats for six weeks across the frozen sea to open water, where "
        "a whaler found them and took all but three of them home to their families, who had given them up for lost "
        "many months before.",
        "Trapped by pack ice for a whole polar winter, the sailors of both vessels survived on game and on what "
        "little they had stored. In the new year they abandoned ship and hauled the lifeboats over the ice until "
        "they reached the open ocean, and a passing whaling ship rescued nearly all of the crew.",
    ),
    ("My laptop's battery is dead.", "The notebook computer has run out of power and needs to be charged."),
)

SENTENCES = [sentence for pair in PAIRS for sentence in pair]
