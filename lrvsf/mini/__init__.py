"""Mini LRVS-F: a small LAION-RVS-Fashion that is drawn, not downloaded.

A product is one garment: alone on white (SIMPLE), and worn by a figure among other garments in a cluttered place
(COMPLEX, or PARTIAL_COMPLEX where the frame cuts it). A scene shows several garments, so without the condition the
query is ambiguous, and with it it is not.

    attributes   what a garment is: category, silhouette, colours, pattern, the seed of its print; its captions
    prints       patterns, and a print of its own for each product
    silhouettes  the outline of each kind of garment on the figure
    canvas       filling polygons with cloth, its folds and its light
    scenes       the figures, the place, the two kinds of picture
    camera       noise, stickers, JPEG
    stock        what a split holds: shares of categories, colourways, copies, near-misses
    build        shards and test sets
    shop         a catalog, and scenes whose every garment it holds
    draw_mini, train_clip    the steps mini, mini_shop, mini_sheet, and mini_clip (clip: a CLIP that saw nothing else)
"""
