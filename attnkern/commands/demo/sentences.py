"""Sentences of 3 to 40 words, in pairs that mean about the same."""

PAIRS = (
    ("It is raining.", "Rain is falling outside."),
    ("Where is the station?", "How do I get to the railway station from here?"),
    ("A cat sleeps on the warm windowsill.", "The kitten is dozing by the sunny window."),
    (
        "The bank raised its interest rate again.",
        "Borrowing became more expensive after the central bank's move.",
    ),
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
        "A translator weighs every word of the sentence before choosing the next one.",
        "Before picking the next word, whoever translates considers each word of the original sentence.",
    ),
    (
        "Bees carry pollen from flower to flower. Without them, many fruits and vegetables would not grow, and "
        "farmers would have to pollinate their fields by hand.",
        "A great part of our food depends on insects that pollinate crops. Where bees disappear, harvests of "
        "apples, almonds and pumpkins shrink, and growers must find costly replacements.",
    ),
    (
        "To bake bread, mix flour, water, salt and yeast, knead the dough for ten minutes, let it rise until it "
        "has doubled, shape a loaf, and bake it in a very hot oven until the crust is brown.",
        "Bread needs four ingredients and patience: knead flour, water, yeast and salt into a smooth dough, rest it "
        "twice, and put the loaf into a well heated oven until it is golden.",
    ),
    (
        "The expedition left in spring with two ships and sixty men. By autumn the ice had closed around them, and "
        "in the next year they dragged their boats for six weeks to open water, where a whaler found them.",
        "Trapped by pack ice for a whole polar winter, the sailors of both vessels hauled the lifeboats over the "
        "frozen sea until they reached the ocean, and a passing whaling ship rescued them.",
    ),
    ("My laptop's battery is dead.", "The notebook computer has run out of power and needs to be charged."),
)

SENTENCES = [sentence for pair in PAIRS for sentence in pair]
